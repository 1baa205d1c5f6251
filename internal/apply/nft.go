package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/host"
)

// nonRecursive makes the kernel refuse to delete what still holds something
// (NLM_F_NONREC in include/uapi/linux/netlink.h).
const nonRecursive = 0x100

func nftFamily(f host.Family) nftables.TableFamily {
	if f == host.IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// nftTables lists the built-in chains of iptables-nft's tables, empty ones too.
func nftTables(f host.Family) (map[string][]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for its nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftFamily(f))
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for its nftables: %w", err)
	}
	found := map[string][]string{}
	for _, t := range tables {
		found[t.Name] = nil
	}
	chains, err := conn.ListChainsOfTableFamily(nftFamily(f))
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for its nftables: %w", err)
	}
	for _, c := range chains {
		if c.Hooknum != nil {
			found[c.Table.Name] = append(found[c.Table.Name], c.Name)
		}
	}
	for _, names := range found {
		slices.Sort(names)
	}
	return found, nil
}

// nftTrim deletes the empty base chains, and the table if it has nothing else,
// that were not there before. iptables-nft makes them as a side effect.
// Chains that hold a rule or a policy other than accept stay; the kernel
// itself refuses to delete what got a rule in between.
func nftTrim(f host.Family, before journal.TableBefore) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("asking the kernel for its nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftFamily(f))
	if err != nil {
		return fmt.Errorf("asking the kernel for its nftables: %w", err)
	}
	all := true // what the table holds goes
	exists := false
	var drop []string
	for _, c := range chains {
		if c.Table.Name != before.Name {
			continue
		}
		exists = true
		if c.Hooknum == nil || slices.Contains(before.Chains, c.Name) || c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			all = false
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("asking the kernel for its nftables: %w", err)
		}
		if len(rules) > 0 {
			all = false
			continue
		}
		drop = append(drop, c.Name)
	}
	if !exists {
		tables, err := nftTables(f)
		if err != nil {
			return err
		}
		_, exists = tables[before.Name]
	}
	dropTable := exists && all && !before.Existed
	if len(drop) == 0 && !dropTable {
		return nil
	}
	if err := nftDelete(f, before.Name, drop, dropTable); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("removing what iptables-nft had made in table %s: %w", before.Name, err)
	}
	return nil
}

// nftDelete deletes chains and then the table, as one transaction of the
// kernel, each only if it is empty (net/netfilter/nf_tables_api.c,
// nf_tables_delchain and nf_tables_deltable).
func nftDelete(f host.Family, table string, chains []string, whole bool) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	family := byte(nftFamily(f))
	batch := []netlink.Message{nftMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)}
	for _, c := range chains {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.NFTA_CHAIN_TABLE, Data: []byte(table + "\x00")},
			{Type: unix.NFTA_CHAIN_NAME, Data: []byte(c + "\x00")},
		})
		if err != nil {
			return err
		}
		batch = append(batch, nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELCHAIN, nonRecursive|netlink.Acknowledge, family, 0, attrs))
	}
	if whole {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(table + "\x00")}})
		if err != nil {
			return err
		}
		batch = append(batch, nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, nonRecursive|netlink.Acknowledge, family, 0, attrs))
	}
	acks := len(batch) - 1
	batch = append(batch, nftMessage(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil))
	if _, err := conn.SendMessages(batch); err != nil {
		return err
	}
	for acks > 0 {
		answers, err := conn.Receive()
		if err != nil {
			return err
		}
		acks -= max(1, len(answers))
	}
	return nil
}

// nftMessage is a netlink message with its nfgenmsg header
// (include/uapi/linux/netfilter/nfnetlink.h).
func nftMessage(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, attrs []byte) netlink.Message {
	head := []byte{family, unix.NFNETLINK_V0, 0, 0}
	binary.BigEndian.PutUint16(head[2:], resource)
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append(head, attrs...),
	}
}
