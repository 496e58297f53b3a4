//! Measures a chinwag server beside the floor: what a bare epoll loop needs for the same work.
//!
//! - [`floor`] is that loop. It speaks just enough of the protocol to be driven by the same client,
//!   and writes messages of the same shape and length as the server's.
//! - [`crowd`] is the client's many connections on one thread, [`load`] what it does with them:
//!   publish at a pace, check every number that every member is sent, and measure.
//! - [`process`] reads what the server's process used.
//! - [`compare`] starts floor and server in turns, through [`launch`], and sets them beside each
//!   other.
//!
//! Absent on purpose: TLS, HTTP polling, more than one room, and any code of the server itself, so
//! that a mistake in it can't hide from the program that measures it.

pub mod cli;
pub mod clock;
pub mod compare;
pub mod crowd;
pub mod floor;
pub mod launch;
pub mod load;
pub mod process;
pub mod report;
pub mod sequence;
pub mod wire;
