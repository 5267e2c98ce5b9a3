//! The settings' values that are one word of a few. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use crate::Refusal;

/// Defines an enum that parses from words and prints as them.
macro_rules! choice {
    ($(#[$doc:meta])* $type:ident, $expected:literal, $($(#[$vdoc:meta])* $variant:ident = $word:literal),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$vdoc])* $variant,)*
        }

        impl FromStr for $type {
            type Err = Refusal;

            fn from_str(text: &str) -> Result<Self, Refusal> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(Refusal::new_unexpected(text, $expected)),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }
    };
}

choice! {
    /// The use of TLS towards clients and upstreams.
    Tls, "both, terminate, off, passthrough or reencrypt",
    /// HAProxy serves HTTP and HTTPS. This is the default.
    Both = "both",
    /// HAProxy serves HTTPS, and redirects HTTP there.
    Terminate = "terminate",
    /// HAProxy serves HTTP only.
    Off = "off",
    /// HAProxy leaves TLS untouched, routes by SNI, and redirects HTTP to HTTPS.
    Passthrough = "passthrough",
    /// As `terminate`, with TLS to the upstream too.
    Reencrypt = "reencrypt"
}

choice! {
    // All of these take servers and weights while HAProxy runs. `static-rr` doesn't (configuration manual, section 4.2).
    /// The rule by which HAProxy spreads requests over upstreams.
    Balance, "roundrobin, leastconn, random, source or uri",
    /// In turns, by weight.
    RoundRobin = "roundrobin",
    /// To the upstream with the fewest connections.
    LeastConn = "leastconn",
    /// The less loaded of two random upstreams.
    Random = "random",
    /// By the client's address, hashed consistently.
    Source = "source",
    /// By the URI's path, hashed consistently.
    Uri = "uri"
}

choice! {
    /// The way in which a client stays with its upstream.
    Sticky, "off, cookie or source",
    /// The client doesn't stay.
    Off = "off",
    /// By a cookie that HAProxy sets.
    Cookie = "cookie",
    /// By the client's address, which HAProxy remembers.
    Source = "source"
}

choice! {
    /// The version of the PROXY protocol that HAProxy sends to upstreams.
    ProxyProtocol, "off, v1 or v2",
    /// HAProxy sends no header of it.
    Off = "off",
    /// The text form.
    V1 = "v1",
    /// The binary form.
    V2 = "v2"
}

choice! {
    /// The HTTP version that HAProxy speaks to upstreams.
    Proto, "h1 or h2",
    /// HTTP/1.1.
    H1 = "h1",
    /// HTTP/2, without negotiation: the upstream must know.
    H2 = "h2"
}

choice! {
    // Methods that change nothing at the upstream, however often HAProxy checks.
    /// The method of a check's request.
    Method, "GET, HEAD or OPTIONS",
    /// `GET`
    Get = "GET",
    /// `HEAD`
    Head = "HEAD",
    /// `OPTIONS`
    Options = "OPTIONS"
}
