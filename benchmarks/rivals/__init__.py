"""Other stream processors at the same job, each as its own guide writes it, in a pinned environment of its own."""
