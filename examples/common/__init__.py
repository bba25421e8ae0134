"""What the examples share. A script in a folder beside this one puts their parent on its path."""
