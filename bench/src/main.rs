//! `chinwag-bench`: see `bench/README.md`.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    thread,
};

use chinwag_bench::{
    command::{Bench, chain},
    compare::Compare,
    floor::{Floor, Mode},
    guard::Guard,
    process,
    wire::Framing,
};
use clap::{Args, Parser, Subcommand};

/// Measures chat servers beside the floor: what a bare epoll loop needs for the same work.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Build it optimised (cargo build --release), or its figures mean nothing."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Floor(FloorArgs),
    Serve(ServeArgs),
    Compare(Box<Compare>),
    Guard(Guard),
    /// The same as `chinwag bench`
    Bench(Box<Bench>),
}

/// Be the floor: one thread, one epoll, one write a member; prints `listening ADDR`
#[derive(Debug, Args)]
struct FloorArgs {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How objects are framed
    #[arg(long, default_value = "lines")]
    framing: Framing,
    /// Whether messages that arrive together go out in one write
    #[arg(long, default_value = "lone")]
    mode: Mode,
}

/// Be the floor in the shape of the server's program, to compare the floor with itself: ratios of
/// cases over TCP and WebSocket that are far from 1 tell how far the measuring is off
#[derive(Debug, Args)]
struct ServeArgs {
    /// Taken since the server takes it, and not read
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Floor(args) => floor(&args).map(|()| true).map_err(|error| chain(&error)),
        Command::Serve(_) => serve().map(|()| true).map_err(|error| chain(&error)),
        Command::Compare(compare) => compare.run().map_err(|error| error.explain()),
        Command::Guard(guard) => guard.run().map_err(|error| error.explain()),
        Command::Bench(bench) => bench
            .run(None)
            .map(|faults| faults == 0)
            .map_err(|error| error.explain()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            // Where even stderr is closed, the exit code has to do.
            _ = writeln!(io::stderr(), "error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn floor(args: &FloorArgs) -> io::Result<()> {
    process::raise_descriptor_limit()?;
    let floor = Floor::bind(args.listen, args.framing, args.mode)?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening {}", floor.local_addr())?;
    out.flush()?;
    drop(out);
    floor.run()
}

/// Listens under all names of the server's tables; only lines and WebSocket are what they are called.
fn serve() -> io::Result<()> {
    process::raise_descriptor_limit()?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners = [
        (Framing::Lines, &["line", "metrics"]),
        (Framing::WebSocket, &["web", "poll"]),
    ];
    let mut threads = Vec::new();
    for (framing, tables) in listeners {
        let floor = Floor::bind(anywhere, framing, Mode::Batch)?;
        for table in tables {
            let addr = floor.local_addr();
            writeln!(io::stderr(), "INFO listening transport={table} addr={addr}")?;
        }
        threads.push(thread::spawn(move || floor.run()));
    }
    for thread in threads {
        thread.join().expect("the floor's loop does not panic")?;
    }
    Ok(())
}
