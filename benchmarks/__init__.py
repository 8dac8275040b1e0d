"""cynosure beside other implementations: a process each, outcomes checked first, runs interleaved."""
