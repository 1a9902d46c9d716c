"""What runs inside the sandbox, and what crosses its border; nothing here knows a test."""
