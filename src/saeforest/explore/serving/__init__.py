"""The API and the page over HTTP on this machine, and as files that need no server."""
