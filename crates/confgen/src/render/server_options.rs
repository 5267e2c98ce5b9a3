//! The options of a service's servers: the same for those of the file and for those that are added while HAProxy runs. Pure: no
//! I/O, no clock.

use discovery::{Check, Proto, ProxyProtocol, Sni, Tls};
use haproxy::runtime::{self, CheckTls, ServerOptions, ServerTls, Word};

use crate::desired::DesiredService;

/// The variable in which haproxy.cfg has the host of a request.
const HOST: &str = "txn.host";

/// The options of `add server` for the service's servers. The weight, the backup flag and the id are a server's own.
pub fn options_for(wanted: &DesiredService) -> ServerOptions {
    let settings = &wanted.settings;
    ServerOptions {
        weight: discovery::Weight::DEFAULT.get(),
        check: settings.check != Check::Off,
        // A server of the file has these words from the file's `defaults`, which a profile replaces.
        liveness: settings.check != Check::Off && settings.profile.is_none(),
        backup: false,
        id: None,
        maxconn: settings.maxconn,
        h2: settings.proto == Proto::H2,
        send_proxy: match settings.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(1),
            ProxyProtocol::V2 => Some(2),
        },
        slowstart: settings.slowstart.map(Into::into),
        tls: (settings.tls == Tls::Reencrypt).then(|| tls_options(wanted)),
        // Passed-through traffic is TLS already. A check is HAProxy's own traffic, and has to speak TLS too.
        check_tls: (settings.passes_through() && matches!(settings.check, Check::Http(_)))
            .then(|| CheckTls { sni: service_host(wanted) }),
    }
}

/// The service's primary host. `None` if it has none.
fn service_host(wanted: &DesiredService) -> Option<Word> {
    wanted.host.as_ref().and_then(|host| host.as_str().parse().ok())
}

fn tls_options(wanted: &DesiredService) -> ServerTls {
    let settings = &wanted.settings;
    let host = service_host(wanted);
    let authorities = settings.trust.authorities_token();
    let (sni, check_sni) = match &settings.sni {
        // A check has no request, so it asks for the service's host.
        Sni::RequestHost => (parse_word(HOST).map(runtime::Sni::Variable), host.clone()),
        Sni::Fixed(name) => (parse_word(name.as_str()).map(runtime::Sni::Fixed), parse_word(name.as_str())),
        Sni::Off => (None, None),
    };
    // Without a requested name or `verifyhost`, HAProxy accepts any certificate of the authority.
    let verify_host = host.filter(|_| sni.is_none() && authorities.is_some());
    ServerTls { authorities, sni, check_sni, verify_host }
}

fn parse_word(name: &str) -> Option<Word> {
    name.parse().ok()
}

/// The same options as words of a `default-server` line, sorted. HAProxy's defaults are left out.
pub fn default_server_words(wanted: &DesiredService) -> Vec<String> {
    let options = options_for(wanted);
    let secure = options.tls.is_some();
    let tls = options.tls.unwrap_or_default();
    let verify = if tls.authorities.is_some() { "verify required" } else { "verify none" };
    let check_tls = options.check_tls;
    // `proto h2` over TLS leaves HTTP checks without an answer (2.6, 3.0). `alpn h2` with `check-alpn h2` doesn't.
    let lines: [Option<String>; 15] = [
        (options.h2 && secure).then(|| "alpn h2".into()),
        tls.authorities.map(|file| format!("ca-file {file}")),
        (options.h2 && secure).then(|| "check-alpn h2".into()),
        tls.check_sni.map(|name| format!("check-sni {name}")),
        check_tls.as_ref().and_then(|check| Some(format!("check-sni {}", check.sni.as_ref()?))),
        check_tls.is_some().then(|| "check-ssl".into()),
        options.maxconn.map(|most| format!("maxconn {most}")),
        (options.h2 && !secure).then(|| "proto h2".into()),
        options.send_proxy.map(|version| if version == 1 { "send-proxy".into() } else { "send-proxy-v2".into() }),
        wanted.settings.slowstart.map(|span| format!("slowstart {span}")),
        tls.sni.map(|sni| match sni {
            runtime::Sni::Fixed(name) => format!("sni str({name})"),
            runtime::Sni::Variable(name) => format!("sni var({name})"),
        }),
        secure.then(|| "ssl".into()),
        secure.then(|| verify.into()),
        check_tls.is_some().then(|| "verify none".into()),
        tls.verify_host.map(|name| format!("verifyhost {name}")),
    ];
    lines.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Policy;
    use crate::desired::tests::{settle, topology};

    #[test]
    fn an_added_server_is_spoken_to_as_one_of_the_file() {
        let settings = [
            "tls reencrypt",
            "tls reencrypt\nproto h2",
            "tls reencrypt\nverify off\nsni off",
            "tls reencrypt\nsni off",
            "tls reencrypt\nsni up.test",
            "proto h2",
            "proxy-protocol v1",
            "proxy-protocol v2",
            "maxconn 7\ncheck off",
            "tls passthrough\ncheck http /health",
            "tls passthrough\nproxy-protocol v2",
        ];
        for some in settings {
            let lines: String = some.lines().map(|line| format!("http-services/a/{line}\n")).collect();
            let store = topology(&format!("http-services/a/domain *.b.test a.test\n{lines}"));
            let settled = settle(&store, &Default::default(), &Default::default());
            let (_, wanted) = settled.services().next().unwrap();
            let added = options_for(wanted).to_string();
            for word in default_server_words(wanted) {
                assert!(format!("{added} ").contains(&format!(" {word} ")), "{some}: {word} isn't in{added}");
            }
        }
    }

    #[test]
    fn an_added_server_is_checked_at_the_pace_of_its_section() {
        let paced = |setting: &str| {
            let store = topology(&format!("http-services/a/domain a.test\nhttp-services/a/{setting}\n"));
            let policy = Policy { profiles: ["slow".parse().unwrap()].into(), ..Policy::default() };
            let settled = settle(&store, &Default::default(), &policy);
            let (_, wanted) = settled.services().next().unwrap();
            options_for(wanted).to_string().contains(runtime::LIVENESS)
        };
        assert!(paced("check tcp") && paced("check http /health"));
        assert!(!paced("check off"), "HAProxy knows no pace without a check");
        assert!(!paced("profile slow"), "the operator's section has none");
    }
}
