//! End to end, in process, through real sockets: the tests are in `tests/`.
