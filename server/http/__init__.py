"""The wire: what a body asks for, one request's life, and what is written into the response."""
