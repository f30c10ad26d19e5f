"""Data: from files of preference pairs or demonstrations to token ids, with every dropped or changed row counted."""
