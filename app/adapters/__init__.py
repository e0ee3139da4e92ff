"""One vendor a file: the edges of the service, where vendor errors become ours."""
