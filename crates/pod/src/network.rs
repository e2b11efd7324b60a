//! Links, addresses and routes of pods and of the bridge, over netlink.
//!
//! Invariant: a pod has a host route only (`/32`), so everything it sends passes the host's service rules, and so do the answers.
//! Namespaces and packet rules are `capture`'s.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use carrick_capture::netns::NetNs;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

use crate::{Network, PodError};

/// The interface inside a pod.
const INSIDE: &str = "eth0";

/// A netlink connection of the namespace it was made in; its task ends when it is dropped.
pub(crate) struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> Result<Netlink, PodError> {
        let (connection, handle, _) = new_connection().map_err(PodError::io("open a netlink socket"))?;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }

    async fn index(&self, name: &str) -> Result<Option<u32>, PodError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("look for link {name}"))(error)),
        }
    }

    async fn wanted(&self, name: &str) -> Result<u32, PodError> {
        self.index(name)
            .await?
            .ok_or_else(|| PodError::Network { doing: format!("look for link {name}"), reason: "there is none".into() })
    }

    /// The bridge with its addresses and the route to services; fine when they are there.
    pub(crate) async fn ensure_bridge(&self, network: &Network) -> Result<(), PodError> {
        let bridge = &network.bridge;
        if self.index(bridge).await?.is_none() {
            let made = self.handle.link().add(LinkBridge::new(bridge).up().build()).execute().await;
            there_is_fine(made).map_err(failed(format!("make bridge {bridge}")))?;
        }
        let index = self.wanted(bridge).await?;
        let address = self.handle.address().add(index, network.gateway.into(), network.prefix).execute().await;
        there_is_fine(address).map_err(failed(format!("give {bridge} the address {}", network.gateway)))?;
        // A bridge without a hardware address of its own takes the lowest among its ports. It would change as pods come and go, and
        // the pods would send to the former one for seconds, until they ask again who their gateway is.
        let own = hardware_address(network.gateway);
        let up = self.handle.link().set(LinkUnspec::new_with_index(index).address(own).up().build()).execute().await;
        up.map_err(failed(format!("bring up {bridge}")))?;
        // Without it a host that has no default route could not even begin to send to a cluster IP.
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.services.0, network.services.1)
            .output_interface(index)
            .pref_source(network.gateway)
            .scope(RouteScope::Link)
            .build();
        there_is_fine(self.handle.route().add(route).execute().await).map_err(failed("add the route to services"))
    }

    /// The pair of links between the bridge and a pod's namespace.
    pub(crate) async fn attach(&self, network: &Network, link: &str, namespace: &NetNs) -> Result<(), PodError> {
        let bridge = self.wanted(&network.bridge).await?;
        let file = namespace.file()?;
        let peer = LinkUnspec::new_with_name(INSIDE).setns_by_fd(file.as_raw_fd()).build();
        let pair = LinkVeth::new(link, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        self.handle.link().add(pair).execute().await.map_err(failed(format!("make link {link}")))?;
        let index = self.wanted(link).await?;
        let joined = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        self.handle.link().set(joined).execute().await.map_err(failed(format!("join {link} to {}", network.bridge)))?;
        // A pod that reaches itself through a service comes back through the port it came from.
        let port = LinkBridgePort::new(index).hairpin(true).build();
        self.handle.link().set_port(port).execute().await.map_err(failed(format!("set {link} to hairpin")))
    }

    /// Removes a link; fine when it is not there.
    pub(crate) async fn remove(&self, link: &str) -> Result<(), PodError> {
        let Some(index) = self.index(link).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, libc::ENODEV) => Err(failed(format!("remove link {link}"))(error)),
            _ => Ok(()),
        }
    }

    /// Names of all links here.
    pub(crate) async fn links(&self) -> Result<Vec<String>, PodError> {
        use rtnetlink::packet_route::link::LinkAttribute;
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed("list the links"))?;
        Ok(links
            .into_iter()
            .filter_map(|link| {
                link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })
            })
            .collect())
    }

    /// Inside a pod's namespace: loopback with the DNS address, the pod's address, and the way out.
    pub(crate) async fn configure_inside(
        &self,
        ip: Ipv4Addr,
        gateway: Ipv4Addr,
        dns: Ipv4Addr,
    ) -> Result<(), PodError> {
        let loopback = self.wanted("lo").await?;
        let index = self.wanted(INSIDE).await?;
        for (index, address, name) in [(loopback, dns, "lo"), (index, ip, INSIDE)] {
            let added = self.handle.address().add(index, address.into(), 32).execute().await;
            there_is_fine(added).map_err(failed(format!("give {name} the address {address}")))?;
            let up = self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await;
            up.map_err(failed(format!("bring up {name}")))?;
        }
        let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(gateway, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        there_is_fine(self.handle.route().add(to_gateway).execute().await)
            .map_err(failed("add the route to the gateway"))?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
        there_is_fine(self.handle.route().add(default).execute().await).map_err(failed("add the default route"))
    }
}

/// The hardware address that goes with a gateway's: locally administered, and the same after every start.
pub(crate) fn hardware_address(gateway: Ipv4Addr) -> Vec<u8> {
    [&[0x02, 0x43], gateway.octets().as_slice()].concat()
}

/// Settings of a pod's kernel, written by a thread inside it: no redirects (they would lead answers past the host's rules), and no
/// duplicate address detection (the hairpin port shows the pod its own probes).
pub(crate) fn settings_inside() -> Result<(), PodError> {
    for (name, value) in [
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/eth0/accept_redirects", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/eth0/accept_dad", "0"),
        // As container runtimes have it: an unprivileged process may listen on 80.
        ("ipv4/ip_unprivileged_port_start", "0"),
    ] {
        write_setting(name, value)?;
    }
    Ok(())
}

/// Settings of the host: forward for pods, and let an endpoint on the host's loopback be reached through its service.
pub(crate) fn settings_of_host(bridge: &str) -> Result<(), PodError> {
    write_setting("ipv4/ip_forward", "1")?;
    write_setting(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
    write_setting(&format!("ipv4/conf/{bridge}/send_redirects"), "0")
}

fn write_setting(name: &str, value: &str) -> Result<(), PodError> {
    let path = format!("/proc/sys/net/{name}");
    match std::fs::write(&path, value) {
        // A kernel without IPv6 has no such setting, and needs none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
        // Read-only settings that already hold the value are as good as written.
        Err(error) => match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => Ok(()),
            _ => Err(PodError::Io { doing: format!("write {value} to {path}"), source: error }),
        },
        Ok(()) => Ok(()),
    }
}

fn is(error: &Error, errno: i32) -> bool {
    matches!(error, Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn there_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if is(&error, libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn failed(doing: impl Into<String>) -> impl FnOnce(Error) -> PodError {
    let doing = doing.into();
    move |error| {
        let reason = match &error {
            Error::NetlinkError(message) => std::io::Error::from_raw_os_error(-message.raw_code()).to_string(),
            other => other.to_string(),
        };
        PodError::Network { doing, reason }
    }
}
