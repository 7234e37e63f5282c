//! What changed between two generations, in words for the log.
