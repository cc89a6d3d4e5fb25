"""The traffic between this daemon and its peers: their requests, this site's calls, the files."""
