"""What goes between this daemon and its peers: their requests, our calls, the files."""
