"""From sockets to chunks in the user's loop."""
