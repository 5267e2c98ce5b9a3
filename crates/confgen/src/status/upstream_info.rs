//! `/metrics/upstreams`: the color and the host of each server in haproxy.cfg, to join with HAProxy's own metrics. Pure.
//!
//! It has a series for each upstream and labels from the store, which `/metrics` must not have.

use discovery::ServiceId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::desired::DesiredState;
use crate::desired::names::preview_section;

/// `proxy` and `server` are the labels of HAProxy's exporter. An empty color or host is no label to Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    proxy: String,
    server: String,
    color: String,
    host: String,
}

/// Registers `confgen_upstream_info`, with the servers of previews too.
pub fn register_upstreams(desired: &DesiredState, registry: &mut Registry) {
    let upstreams = Family::<ServerLabels, Gauge>::default();
    for service in desired.known_services() {
        for labels in list_servers(desired, service) {
            upstreams.get_or_create(&labels).set(1);
        }
    }
    let help = "Color and host of each server in haproxy.cfg, by the labels of HAProxy's own metrics";
    registry.sub_registry_with_prefix("confgen").register("upstream_info", help, upstreams);
}

fn list_servers(desired: &DesiredState, service: &ServiceId) -> Vec<ServerLabels> {
    let mut servers = Vec::new();
    for upstream in desired.explain_upstreams(service) {
        let record = upstream.announced;
        let labels = ServerLabels {
            proxy: service.to_string(),
            server: upstream.id.to_string(),
            color: record.and_then(|it| it.color.as_ref()).map(ToString::to_string).unwrap_or_default(),
            host: record.and_then(|it| it.host.as_ref()).map(ToString::to_string).unwrap_or_default(),
        };
        if let Some((color, _)) = upstream.previewed {
            servers.push(ServerLabels { proxy: preview_section(service, color), ..labels.clone() });
        }
        servers.extend(upstream.server.map(|_| labels));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::{settle, topology};

    #[test]
    fn each_server_of_the_file_has_its_color() {
        let store = "http-services/shop/domain shop.test\nhttp-services/shop/preview 10.0.0.0/8\n\
                     http-services/shop/upstreams/a {\"address\":\"10.0.0.1:80\",\"color\":\"blue\",\"host\":\"web-1\"}\n\
                     http-services/shop/upstreams/bad garbage\n\
                     tcp-services/db/ports 3306\ntcp-services/db/upstreams/x 10.0.0.2:3306";
        let mut registry = Registry::default();
        register_upstreams(&settle(&topology(store), &Default::default(), &Default::default()), &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        series.sort_unstable();
        let expected = [
            r#"confgen_upstream_info{proxy="http-shop",server="a",color="blue",host="web-1"} 1"#,
            r#"confgen_upstream_info{proxy="http-shop:preview-blue",server="a",color="blue",host="web-1"} 1"#,
            r#"confgen_upstream_info{proxy="tcp-db",server="x",color="",host=""} 1"#,
        ];
        assert_eq!(series, expected);
    }
}
