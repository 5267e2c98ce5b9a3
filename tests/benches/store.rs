//! What stands in the store before a measurement begins.

use lab::Etcd;

/// This many upstreams, ten a service. Nothing listens there, and they aren't checked. Only their number counts.
pub fn fill_upstreams(etcd: &Etcd, size: usize) {
    etcd.put_all((0..size).map(|n| (format!("http-services/s{}/upstreams/u{n}", n / 10), address_of(n))));
    etcd.put_all((0..size.div_ceil(10)).flat_map(service_keys));
}

/// This many services, with an upstream each.
pub fn fill_services(etcd: &Etcd, size: usize) {
    etcd.put_all((0..size).map(|s| (format!("http-services/s{s}/upstreams/u"), address_of(s))));
    etcd.put_all((0..size).flat_map(service_keys));
}

fn service_keys(s: usize) -> [(String, Vec<u8>); 2] {
    let below = format!("http-services/s{s}");
    [(format!("{below}/domain"), format!("s{s}.test").into_bytes()), (format!("{below}/check"), b"off".to_vec())]
}

/// A loopback address without a listener, another one for each number.
pub fn address_of(n: usize) -> Vec<u8> {
    format!("127.{}.{}.{}:9", 1 + n / 50_000, n / 200 % 250, n % 200 + 1).into_bytes()
}
