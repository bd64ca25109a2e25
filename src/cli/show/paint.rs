//! Colour, which only says again what a word says already: in a pipe, or with `NO_COLOR`, nothing is lost.

use std::io::IsTerminal as _;

/// The few colours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Paint {
    Strong,
    Dim,
    Good,
    Bad,
    Waiting,
    Name,
}

/// Colours, or none of them.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Palette {
    is_coloured: bool,
}

impl Palette {
    /// In colour when standard output is a terminal and `NO_COLOR` is unset or empty (<https://no-color.org>).
    pub(in crate::cli) fn for_stdout() -> Self {
        let colour_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_coloured: colour_wanted && std::io::stdout().is_terminal() }
    }

    /// No colours.
    #[cfg(test)]
    pub(in crate::cli) const fn plain() -> Self {
        Self { is_coloured: false }
    }

    /// The text in that colour. Pad before, so that columns stay straight.
    pub(in crate::cli) fn paint(self, paint: Paint, text: &str) -> String {
        if !self.is_coloured || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Strong => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Waiting => "33",
            Paint::Name => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_pipe_has_no_escape_codes() {
        assert_eq!(Palette::plain().paint(Paint::Bad, "503"), "503");
        assert_eq!(Palette { is_coloured: true }.paint(Paint::Bad, "503"), "\x1b[31m503\x1b[0m");
    }
}
