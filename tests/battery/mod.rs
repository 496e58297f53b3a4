//! The scenarios that hold on every transport and between transports. A new transport inherits them.

mod endings;
mod frames;
mod limits;
mod login;
mod messages;
mod plugins;
mod presence;
mod rooms;
