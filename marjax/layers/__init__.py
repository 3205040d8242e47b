"""What backbone and head are made of; nothing here knows of images."""
