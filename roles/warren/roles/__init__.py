"""Where servers, listeners and clients are put together into a process."""
