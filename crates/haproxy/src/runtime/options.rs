//! What a server is added with.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::{Token, Word};

/// What a server is added with. `add server` takes nothing over from `default-server` (Management Guide, section 9.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// 0 to 256. HAProxy's own default is 1, which is next to nothing beside the file's 100.
    pub weight: u16,
    /// Whether HAProxy checks it, as its backend says how.
    pub check: bool,
    /// Used only when no other server is up.
    pub backup: bool,
    /// Connections to it; what is beyond waits.
    pub maxconn: Option<NonZeroU32>,
    /// HTTP/2: agreed on by ALPN over TLS, and taken for granted in the clear.
    pub h2: bool,
    /// The PROXY protocol's version, 1 or 2.
    pub send_proxy: Option<u8>,
    /// The id that places it among its siblings under a consistent hash. `None` lets HAProxy choose the lowest free one, but
    /// 2.6 computes the place before it has chosen: all such servers then share one place, and most get no request.
    pub id: Option<NonZeroU32>,
    /// How long it takes to its whole weight after having been down.
    pub slowstart: Option<Duration>,
    /// TLS to it.
    pub tls: Option<ServerTls>,
    /// TLS in health checks alone, where what is sent there is TLS already.
    pub check_tls: Option<CheckTls>,
}

/// How a health check alone speaks TLS. Whose certificate the server has isn't checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckTls {
    /// The name that it is asked for.
    pub sni: Option<Word>,
}

/// How TLS is spoken to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// The authorities that its certificate is checked against: a file that HAProxy has loaded at its start, or
    /// `@system-ca`. None is no check.
    pub authorities: Option<Token>,
    /// The name that it is asked for, and that its certificate has to bear.
    pub sni: Option<Sni>,
    /// The same in health checks.
    pub check_sni: Option<Word>,
    /// The name that its certificate has to bear where it isn't asked for one.
    pub verify_host: Option<Word>,
}

/// The name that a server is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sni {
    /// This one.
    Fixed(Word),
    /// What this variable of the request holds.
    Variable(Word),
}

impl fmt::Display for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " weight {}", self.weight)?;
        if self.check {
            f.write_str(" check")?;
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
        // The checks of a server of the file speak as its traffic does; those of one that is added have to be told.
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
