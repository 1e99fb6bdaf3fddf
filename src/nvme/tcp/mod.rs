//! The TCP transport: PDUs, and one machine for each end of a connection. Bytes and time in, bytes and events out.
