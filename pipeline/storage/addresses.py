"""Which addresses a redirect may lead to.

The server of a shard is foreign. By a redirect it could make this machine ask services that only
this machine or its network reaches: another program's port, a cloud's credentials. So a redirect
leads to public addresses. From a server inside a private network it may also lead to others of such
a network, and back to the server itself.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

# RFC 1918, RFC 6598 (carriers' and clouds' inner networks), RFC 4193.
_PRIVATE_NETWORKS = [
    ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]
# Where clouds hand out credentials, beside link-local addresses: Alibaba, Azure, AWS, Google.
_METADATA = {
    ip_address(address)
    for address in ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254")
}
_UNICAST = ip_network("2000::/3")  # all that is assigned to the public Internet
# IPv6 addresses whose last 32 bits are the IPv4 address that is reached: NAT64, IPv4-compatible.
_EMBEDDING = [ip_network("64:ff9b::/96"), ip_network("::/96")]


def address_of(host: str) -> Address | None:
    """The address that a literal such as `127.0.0.1` or `::ffff:127.0.0.1` reaches, the IPv4
    address where it holds one; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if any(address in network for network in _EMBEDDING):
            # ::1 becomes 0.0.0.1: like ::1, it is no public and no private network's address.
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_public(address: Address) -> bool:
    """Whether the whole Internet reaches this address."""
    if not address.is_global or address.is_multicast or address in _METADATA:
        return False
    return address.version == 4 or address in _UNICAST


def may_lead_to(target: Address, origin: Collection[Address]) -> bool:
    """Whether a server may redirect to `target`. origin: the server's own addresses; none, where
    they are not known, counts as public."""
    if is_public(target):
        return True
    if not origin or any(map(is_public, origin)):
        return False
    private = any(target in network for network in _PRIVATE_NETWORKS)
    return target in origin or (private and target not in _METADATA)
