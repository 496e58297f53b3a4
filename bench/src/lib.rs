//! Measures chat servers: `chinwag bench`, and the comparison with a floor and with peers behind `bench/run`.
//!
//! - [`command`] is `chinwag bench`: [`scenario`] has what it can find out, [`report`] how that is told, [`plot`] how
//!   it is drawn.
//! - [`load`] is one crowd under load: [`crowd`] has its connections on one thread, [`hearing`] checks every event that
//!   every member is sent, through [`sequence`], and times it. [`wire`] lays frames onto byte streams,
//!   and [`stream`] these onto sockets, in plain text or through TLS.
//! - [`cost`] is what the server's process used meanwhile, out of [`process`]; [`stalled`], [`sockets`] and
//!   [`syscalls`] ask the system for more.
//! - [`floor`] is the least that any server could do: a bare epoll loop. [`peers`] are other servers, and [`compare`]
//!   sets all of them beside each other, started by [`launch`] and [`served`].
//! - [`guard`] counts what noise does not touch, and holds it to bounds.
//!
//! Absent on purpose: any code of the server itself, so that a mistake in it can't hide from the program that measures
//! it.

pub mod clock;
pub mod command;
pub mod compare;
pub mod cost;
pub mod crowd;
pub mod floor;
pub mod guard;
pub mod hearing;
mod hint;
pub mod interrupt;
pub mod launch;
pub mod link;
pub mod load;
pub mod login_storm;
mod object;
pub mod peers;
pub mod plot;
pub mod process;
pub mod progress;
pub mod report;
pub mod scenario;
pub mod scrape;
pub mod sequence;
pub mod served;
pub mod sockets;
pub mod spread;
pub mod stalled;
pub mod stream;
pub mod syscalls;
pub mod table;
pub mod target;
pub mod wire;
