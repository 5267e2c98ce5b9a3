//! What TCP services have of their own: several ports, and TLS that ends at the balancer.

use lab::http::Request;
use lab::light;

use super::scene::SCENE;

#[test]
fn a_service_has_several_ports() {
    let _turn = light();
    for address in SCENE.ports["alive"] {
        let response = Request::get("x", "/").send(address).unwrap();
        assert_eq!((response.status, response.line("x-forwarded-for")), (200, None), "{address}: {response:?}");
    }
}

#[test]
fn tls_ends_with_the_certificate_that_is_asked_for() {
    let _turn = light();
    for address in SCENE.ports["encrypted"] {
        for name in ["a.test", "b.test"] {
            let response = Request::get("x", "/").tls(name).send(address).unwrap();
            assert_eq!((response.status, response.app()), (200, "one"), "{name}: {response:?}");
            assert_eq!(response.certificate.as_ref(), Some(&SCENE.certificates[name].der), "{name}");
        }
        let plain = Request::get("x", "/").send(address);
        assert!(plain.is_err(), "{plain:?}");
    }
}
