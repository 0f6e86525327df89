"""Claims about tables that others published, judged by the rules of experiments (`zoo judge`)."""
