"""Results to tables: trial folders to a frame, a frame to a summary, a summary to text. Never imports torch.

``summarise(read_results(folder, planned))`` returns the summary, which ``summary_text`` prints and ``page`` turns into
one HTML page. ``render`` prints the tables of all commands. Nothing is imported here, because pandas and SciPy take
longer to import than most commands take.
"""
