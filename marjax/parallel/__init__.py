"""Where arrays live: the mesh, and the table of logical axes."""
