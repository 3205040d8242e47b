"""A page to play on, served to a browser on this machine; needs gradio."""
