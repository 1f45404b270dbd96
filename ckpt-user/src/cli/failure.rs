//! The one place where failures are told, and where they become exit codes.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use ckpt::image::ImageError;

/// Why a subcommand did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The library says why.
    #[error(transparent)]
    Library(#[from] ckpt::Error),

    /// An image cannot be read or written.
    #[error("{path}: {source}")]
    Image {
        /// Its name as the user gave it.
        path: String,
        /// What is wrong.
        source: ImageError,
    },

    /// A restart point whose images do not make a whole.
    #[error("{0}")]
    Damaged(String),

    /// A file or descriptor that the user named cannot be used.
    #[error("{doing}: {source}")]
    File {
        /// What was being done with it.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),

    /// The command line cannot be carried out, whatever the state of the world.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    /// A failure of the library, about the image that the user knows by this name.
    pub fn about(image: &Path, error: ckpt::Error) -> Failure {
        match error {
            ckpt::Error::Image(source) => Failure::Image { path: image.display().to_string(), source },
            other => Failure::Library(other),
        }
    }

    /// A file or descriptor named by the user that failed.
    pub fn file(doing: impl Into<String>, source: impl Into<io::Error>) -> Failure {
        Failure::File { doing: doing.into(), source: source.into() }
    }

    /// Tells it on standard error and in the log. Returns the exit code.
    pub fn report(&self) -> ExitCode {
        if let Failure::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // Whoever reads has read enough (`ckpt info img | head`).
            return ExitCode::SUCCESS;
        }
        for line in self.to_string().lines() {
            eprintln!("ckpt: {line}");
            tracing::error!(target: super::log::REPORTED, "{line}");
        }
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}
