//! Sockets, RPC threads and services.
