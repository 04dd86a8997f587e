//! The network around the service: which proxies are believed, which sites may call.

use std::net::IpAddr;

use ipnet::IpNet;

/// What the service takes from the network around it. The default believes nobody.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// The proxies whose word about their clients is believed.
    pub trusted_proxies: TrustedProxies,
    /// The sites whose pages may call the API.
    pub cors_origins: CorsOrigins,
}

/// Addresses of proxies. What they say about the addresses of their clients is believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Parses addresses and networks, separated by commas: `10.0.0.0/8, 192.0.2.7, fd00::/8`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parse = |item: &str| {
            let address = item.parse::<IpAddr>().map(IpNet::from);
            address
                .or_else(|_| item.parse::<IpNet>())
                .map_err(|_| format!("`{item}` is neither an address nor a network"))
        };
        items(text).map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The sites whose pages may call the API from a browser (CORS).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// No site; browsers let only pages of the service itself call it.
    #[default]
    None,
    /// Every site.
    Any,
    /// The sites with these origins, as browsers write them: `https://app.example.com`.
    Listed(Vec<String>),
}

impl CorsOrigins {
    /// Parses `*`, or origins separated by commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let listed: Vec<_> = items(text).collect();
        match listed[..] {
            [] => Ok(Self::None),
            ["*"] => Ok(Self::Any),
            _ => listed.into_iter().map(origin).collect::<Result<_, _>>().map(Self::Listed),
        }
    }
}

/// An origin as browsers send it: in lower case, without a path and without a standard port.
fn origin(text: &str) -> Result<String, String> {
    let invalid = || format!("`{text}` is not an origin, such as https://app.example.com");
    let url = url::Url::parse(text).map_err(|_| invalid())?;
    let is_bare = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_bare && ["http", "https"].contains(&url.scheme()) {
        Ok(url.origin().ascii_serialization())
    } else {
        Err(invalid())
    }
}

/// The items of a list with commas.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_addresses_and_networks() {
        let proxies = TrustedProxies::parse("10.0.0.0/8, 192.0.2.7,fd00::/8,").expect("a list");
        for (address, is_trusted) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd12::1", true),
            ("::1", false),
        ] {
            assert_eq!(proxies.contains(address.parse().expect("an address")), is_trusted);
        }
        assert!(!TrustedProxies::parse("").expect("none").contains([127, 0, 0, 1].into()));
        for wrong in ["proxy.example", "10.0.0.0/33", "10.0.0.1:80"] {
            let error = TrustedProxies::parse(wrong).expect_err("refused");
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn origins_are_what_browsers_send() {
        assert_eq!(CorsOrigins::parse(" "), Ok(CorsOrigins::None));
        assert_eq!(CorsOrigins::parse("*"), Ok(CorsOrigins::Any));
        let listed = ["https://app.example.com", "http://localhost:3000"].map(str::to_owned);
        assert_eq!(
            CorsOrigins::parse("https://App.example.com:443/, http://localhost:3000"),
            Ok(CorsOrigins::Listed(listed.to_vec()))
        );
        for wrong in ["app.example.com", "ftp://x", "https://x/path", "https://x, *", "null"] {
            assert!(CorsOrigins::parse(wrong).is_err(), "{wrong}");
        }
    }
}
