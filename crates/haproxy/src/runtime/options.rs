//! Writes the options of an added server. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::{Token, Word};

/// The words by which HAProxy soon notices a server that is dead or cut off (2.6 to 3.4). After a failed check it checks once a
/// second. 85 connections of requests in a row that fail count as a failed check. After four failed checks in a row the server is
/// down, and HAProxy checks it every half second. At 500 requests/s to a single server, half a second without a listener counts as two
/// failed checks, and by chance one more: such a server stays up, and its requests are repeated.
pub const LIVENESS: &str = "downinter 500ms error-limit 85 fall 4 fastinter 1s observe layer4 on-error fail-check";

/// The options of an added server. `add server` takes nothing from `default-server` (Management Guide, section 9.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// The weight, 0 to 256. HAProxy's own default is 1, which is next to nothing beside the file's 100.
    pub weight: u16,
    /// True if HAProxy checks the server, as its backend says.
    pub check: bool,
    /// True if the check has the pace of [`LIVENESS`].
    pub liveness: bool,
    /// True for a server that is used only if no other one is up.
    pub backup: bool,
    /// The most connections to the server. Further requests wait.
    pub maxconn: Option<NonZeroU32>,
    /// True for HTTP/2: agreed on by ALPN over TLS, and taken for granted in the clear.
    pub h2: bool,
    /// The PROXY protocol's version, 1 or 2.
    pub send_proxy: Option<u8>,
    /// The id that places it among its siblings under a consistent hash. `None` lets HAProxy choose the lowest free one, but
    /// 2.6 computes the place before it has chosen: all such servers then share one place, and most get no request.
    pub id: Option<NonZeroU32>,
    /// The time in which the server gets back to its whole weight after it was down.
    pub slowstart: Option<Duration>,
    /// TLS to the server. `None` for plain text.
    pub tls: Option<ServerTls>,
    /// TLS in health checks only, for a server that gets TLS from its clients anyway.
    pub check_tls: Option<CheckTls>,
}

/// TLS of a health check only. HAProxy doesn't verify the server's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckTls {
    /// The name that the check asks for. `None` for no name.
    pub sni: Option<Word>,
}

/// TLS to a server, in its checks too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// The CA certificates that the server's certificate is verified against: a file that HAProxy has loaded at its
    /// start, or `@system-ca`. `None` for no verification.
    pub authorities: Option<Token>,
    /// The name that HAProxy asks for, and that the server's certificate has to bear.
    pub sni: Option<Sni>,
    /// The same name in health checks.
    pub check_sni: Option<Word>,
    /// The name that the server's certificate has to bear if HAProxy asks for none.
    pub verify_host: Option<Word>,
}

/// The name that HAProxy asks a server for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sni {
    /// This name, in every request.
    Fixed(Word),
    /// The value of this variable of the request.
    Variable(Word),
}

impl fmt::Display for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " weight {}", self.weight)?;
        if self.check {
            f.write_str(" check")?;
        }
        if self.liveness {
            write!(f, " {LIVENESS}")?;
        }
        if self.backup {
            f.write_str(" backup")?;
        }
        if let Some(id) = self.id {
            write!(f, " id {id}")?;
        }
        if let Some(most) = self.maxconn {
            write!(f, " maxconn {most}")?;
        }
        // With `proto h2` over TLS, HTTP checks get no answer (2.6, 3.0).
        f.write_str(match (self.h2, &self.tls) {
            (true, Some(_)) => " alpn h2 check-alpn h2",
            (true, None) => " proto h2",
            (false, _) => "",
        })?;
        // In a server of the file, checks use the PROXY protocol if its traffic does. In an added server they need an
        // option.
        f.write_str(match self.send_proxy {
            Some(1) => " check-send-proxy send-proxy",
            Some(_) => " check-send-proxy send-proxy-v2",
            None => "",
        })?;
        if let Some(time) = self.slowstart {
            write!(f, " slowstart {}ms", time.as_millis())?;
        }
        self.check_tls.as_ref().map_or(Ok(()), |tls| tls.fmt(f))?;
        self.tls.as_ref().map_or(Ok(()), |tls| tls.fmt(f))
    }
}

impl fmt::Display for CheckTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.sni {
            write!(f, " check-sni {name}")?;
        }
        f.write_str(" check-ssl verify none")
    }
}

impl fmt::Display for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(" check-ssl")?;
        if let Some(name) = &self.check_sni {
            write!(f, " check-sni {name}")?;
        }
        match &self.sni {
            Some(Sni::Fixed(name)) => write!(f, " sni str({name})")?,
            Some(Sni::Variable(name)) => write!(f, " sni var({name})")?,
            None => {}
        }
        match &self.authorities {
            Some(file) => write!(f, " ssl verify required ca-file {file}")?,
            None => f.write_str(" ssl verify none")?,
        }
        match &self.verify_host {
            Some(name) => write!(f, " verifyhost {name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_reads_as_haproxy_takes_it() {
        let word = |text: &str| text.parse::<Word>().unwrap();
        let tls = ServerTls {
            authorities: Some("/var/lib/confgen/ca/internal".parse().unwrap()),
            sni: Some(Sni::Variable(word("txn.host"))),
            check_sni: Some(word("shop.test")),
            verify_host: None,
        };
        let options = ServerOptions { weight: 100, check: true, h2: true, tls: Some(tls), ..ServerOptions::default() };
        assert_eq!(
            options.to_string(),
            " weight 100 check alpn h2 check-alpn h2 check-ssl check-sni shop.test sni var(txn.host) \
             ssl verify required ca-file /var/lib/confgen/ca/internal"
        );
        let nameless = ServerTls { verify_host: Some(word("shop.test")), ..ServerTls::default() };
        assert_eq!(nameless.to_string(), " check-ssl ssl verify none verifyhost shop.test");
        assert_eq!(CheckTls { sni: Some(word("a.test")) }.to_string(), " check-sni a.test check-ssl verify none");
    }
}
