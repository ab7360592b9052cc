"""The command line: one file per command or group. Commands parse options, call ``kd_bench.api`` and print."""
