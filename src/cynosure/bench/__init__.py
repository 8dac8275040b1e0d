"""Side by side with the peers and with the limit: a process each, runs interleaved, gradients checked first."""
