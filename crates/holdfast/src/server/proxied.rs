//! The address of a client behind a balancer: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>), believed of balancers that the configuration names and of nobody else.
//!
//! Whoever is named always sends a header: whether there is one is not guessed (section 2 of the specification), since a client could send it, too.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Version 1: the longest line, its end included (section 2.1).
const LINE_BYTES_MAX: usize = 107;
const LINE_BEGINS: &[u8] = b"PROXY ";
/// Version 2 begins so (section 2.2). No line of version 1 is as short.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2: addresses, and what else a balancer tells; those known tell a few hundred bytes.
const REST_BYTES_MAX: usize = 4096;

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Network {
    address: IpAddr,
    /// Bits that count; never none.
    prefix: u8,
}

impl Network {
    fn bits(address: IpAddr) -> (u128, u8) {
        match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
            IpAddr::V6(address) => (address.into(), 128),
        }
    }

    fn holds(self, address: IpAddr) -> bool {
        let ((ours, of), (theirs, their)) = (Self::bits(self.address), Self::bits(address));
        of == their && (ours ^ theirs).leading_zeros() >= u32::from(self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network (like 10.0.0.0/8, fd00::/8 or 192.0.2.7)");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        if address.to_canonical() != address {
            return Err(format!("{text:?} holds IPv4 addresses: write it as a network of those, like 10.0.0.0/8"));
        }
        let (bits, length) = Self::bits(address);
        let prefix = prefix.unwrap_or(length);
        if prefix > length {
            return Err(wrong());
        }
        if prefix == 0 {
            return Err(format!("{text:?} is everybody: name the balancers' networks"));
        }
        if bits.trailing_zeros() < 128 - u32::from(prefix) && bits != 0 {
            return Err(format!("{text:?} has bits behind its prefix: is it {address} alone, or a larger network?"));
        }
        Ok(Self { address, prefix })
    }
}

/// Whom a header is believed of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balancers(Arc<[Network]>);

impl Balancers {
    pub(crate) fn parse(field: &str, networks: &[String]) -> Result<Self, String> {
        let parsed: Result<Vec<Network>, _> = networks.iter().map(|text| text.parse()).collect();
        Ok(Self(parsed.map_err(|error| format!("{field}: {error}"))?.into()))
    }

    pub(crate) fn name(&self, peer: SocketAddr) -> bool {
        self.0.iter().any(|network| network.holds(peer.ip().to_canonical()))
    }
}

/// Why a connection of a balancer says of nobody.
#[derive(Debug)]
pub(super) enum NotProxied {
    Io(io::Error),
    /// It begins with something else.
    NoHeader,
    Malformed(&'static str),
}

impl fmt::Display for NotProxied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::NoHeader => f.write_str("it begins without a PROXY header"),
            Self::Malformed(what) => write!(f, "its PROXY header is malformed: {what}"),
        }
    }
}

impl From<io::Error> for NotProxied {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the header of a balancer's connection, and not a byte more. `None`: it is the balancer's own, to look whether we are there.
pub(super) async fn client_of(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, NotProxied> {
    let mut begin = [0; SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin == *SIGNATURE {
        return version_2(stream).await;
    }
    if !begin.starts_with(LINE_BEGINS) {
        return Err(NotProxied::NoHeader);
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(NotProxied::Malformed("its line does not end"));
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line[LINE_BEGINS.len()..line.len() - 2])
}

/// `TCP4 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`, the same with `TCP6`, or `UNKNOWN` and anything.
fn version_1(line: &[u8]) -> Result<Option<SocketAddr>, NotProxied> {
    let wrong = NotProxied::Malformed;
    let text = std::str::from_utf8(line).map_err(|_| wrong("it is no text"))?;
    let words: Vec<&str> = text.split(' ').collect();
    let port = |word: &str| {
        let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        word.parse::<u16>().ok().filter(|_| digits).ok_or(wrong("a port"))
    };
    let addresses = |source: &str, destination: &str, v4: bool| {
        let parse = |word: &str| word.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == v4);
        parse(source).filter(|_| parse(destination).is_some()).ok_or(wrong("an address"))
    };
    match *words.as_slice() {
        ["UNKNOWN", ..] => Ok(None),
        [family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = addresses(source, destination, family == "TCP4")?;
            port(destination_port)?;
            Ok(Some(SocketAddr::new(address.to_canonical(), port(source_port)?)))
        }
        _ => Err(wrong("its words")),
    }
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, NotProxied> {
    let wrong = |what| Err(NotProxied::Malformed(what));
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [command, family, len @ ..] = head;
    let len = usize::from(u16::from_be_bytes(len));
    if len > REST_BYTES_MAX {
        return wrong("it is too long");
    }
    let mut rest = vec![0; len];
    stream.read_exact(&mut rest).await?;
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return wrong("its version or command"),
    }
    let port = |at: usize| rest.get(at..at + 2).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    let client = match family {
        0x11 => rest.first_chunk::<4>().map(|source| IpAddr::V4(Ipv4Addr::from(*source))).zip(port(8)),
        0x21 => rest.first_chunk::<16>().map(|source| IpAddr::V6(Ipv6Addr::from(*source))).zip(port(32)),
        // Not known to the balancer, or of a Unix socket.
        0x00 | 0x31 => return Ok(None),
        _ => return wrong("its family"),
    };
    let whole = if family == 0x11 { 12 } else { 36 };
    match client.filter(|_| rest.len() >= whole) {
        Some((address, port)) => Ok(Some(SocketAddr::new(address.to_canonical(), port))),
        None => wrong("it is too short"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [SIGNATURE.as_slice(), &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    /// What comes of `bytes`, and what is left of them.
    async fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, Vec<u8>) {
        let mut stream = bytes;
        let client = client_of(&mut stream).await.map_err(|error| error.to_string());
        (client, stream.to_vec())
    }

    #[tokio::test]
    async fn headers_name_the_client_and_end_where_they_end() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        v6[32..34].copy_from_slice(&56324_u16.to_be_bytes());
        let mut mapped = v6;
        mapped[..16].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
        let more = [v4.as_slice(), &[0x04, 0, 2, 9, 9]].concat();
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n".to_vec(), Some("192.0.2.7:56324")),
            (b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n".to_vec(), Some("[2001:db8::7]:56324")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 anything at all\r\n".to_vec(), None),
            (header_2(0x21, 0x11, &v4), Some("192.0.2.7:56324")),
            (header_2(0x21, 0x11, &more), Some("192.0.2.7:56324")),
            (header_2(0x21, 0x21, &v6), Some("[2001:db8::7]:56324")),
            (header_2(0x21, 0x21, &mapped), Some("192.0.2.7:56324")),
            (header_2(0x20, 0x11, &v4), None),
            (header_2(0x20, 0x00, &[]), None),
            (header_2(0x21, 0x00, &[1; 9]), None),
        ] {
            let (found, left) = read(&[header.as_slice(), b"\x16\x03\x01rest"].concat()).await;
            assert_eq!(found, Ok(client.map(|client| client.parse().unwrap())), "{}", header.escape_ascii());
            assert_eq!(left, b"\x16\x03\x01rest");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_and_bounded() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 5\r\n",
            b"PROXY TCP4  192.0.2.7 10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 56324 443\r\n",
            b"PROXY TCP6 192.0.2.7 10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +5 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.999 56324 443\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 \xff 10.0.0.1 56324 443\r\n",
            b"proxy TCP4 192.0.2.7 10.0.0.1 56324 443\r\n",
            &long,
            &header_2(0x21, 0x11, &[0; 11]),
            &header_2(0x21, 0x21, &[0; 35]),
            &header_2(0x21, 0x12, &[0; 12]),
            &header_2(0x22, 0x11, &[0; 12]),
            &header_2(0x11, 0x11, &[0; 12]),
            &header_2(0x21, 0x11, &[0; 5000]),
            &header_2(0x21, 0x11, &[0; 12])[..20],
            SIGNATURE,
            b"",
        ] {
            let (found, left) = read(bytes).await;
            assert!(found.is_err(), "{}: {found:?}", bytes.escape_ascii());
            assert!(bytes.len() - left.len() <= 16 + REST_BYTES_MAX);
        }
    }

    #[test]
    fn networks_hold_what_begins_alike() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.128/25", "192.0.2.200", "192.0.2.127"),
            ("fd00::/8", "fd12::1", "fe00::1"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "a00::1"),
        ] {
            let balancers = Balancers::parse("here", &[network.to_owned()]).unwrap();
            let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
            assert!(balancers.name(at(inside)) && !balancers.name(at(outside)), "{network}");
            assert!(!Balancers::default().name(at(inside)));
        }
        for wrong in [
            "::ffff:10.0.0.0/104",
            "::ffff:192.0.2.7",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10/8",
            "balancer",
            "",
            "fd00::1/8",
            "10.0.0.0/8/8",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
