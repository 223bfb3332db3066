"""What a run came to, on a page: read from its folder, drawn, and set beside the paper's numbers."""
