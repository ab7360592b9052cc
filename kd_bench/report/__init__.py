"""Results to tables: trial folders to a frame, a frame to statistics, statistics to text. Never imports torch.

``summarise(read_results(folder, planned))`` is what ``render`` and ``write`` of ``formats`` turn into text, and
``page`` of ``page`` into one HTML page with the trials behind every number. ``reprint`` prints the paper's tables.
Nothing is imported here, as pandas and SciPy take longer to import than most commands take to answer.
"""
