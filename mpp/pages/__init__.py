"""Pages that people read: what a run folder says (run_folder), drawn (charts) and laid out (templates/, page)."""
