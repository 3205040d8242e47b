"""Where arrays live: mesh and the table of logical axes."""
