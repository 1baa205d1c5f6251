package nft

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// maxElements bounds what the elements of all sets together may take, in bytes
// as host.Elements has them: some three million addresses.
const maxElements = 64 << 20

// addSet adds a set, without its elements, and to the items if its elements do
// something that needs connection tracking: "ct count" is the one that nft
// knows.
func (r *reader) addSet(t *host.NFTTable, m *message) {
	parts := expressions(m.attrs[attrSetExpressions], nil)
	if one := oneExpression(m.attrs[attrSetExpr], maxNested); one.Name != "" {
		parts = append(parts, one)
	}
	name := m.text(unix.NFTA_SET_NAME)
	for i := range parts {
		if nftables.Module(parts[i].Name) != "" {
			t.Items = append(t.Items, host.NFTItem{Kind: "set", Name: name, Uses: []string{parts[i].Name}})
			break
		}
	}
	if !r.whole {
		return
	}
	n := func(attr int) uint32 { return uint32(m.number(attr)) }
	s := host.NFTSet{
		Name: name, Flags: n(unix.NFTA_SET_FLAGS), KeyType: n(unix.NFTA_SET_KEY_TYPE), KeyLen: n(unix.NFTA_SET_KEY_LEN),
		DataType: n(unix.NFTA_SET_DATA_TYPE), DataLen: n(unix.NFTA_SET_DATA_LEN), ObjectType: n(attrSetObjType), Unread: true,
	}
	for i := range parts {
		s.Exprs = append(s.Exprs, parts[i].Name)
	}
	each(attribute(m.attrs[unix.NFTA_SET_DESC], attrDescConcat), func(field []byte) {
		s.Fields = append(s.Fields, uint32(bigEndian(attribute(field, attrFieldLen))))
	})
	at := tableName{m.family, string(m.attrs[unix.NFTA_SET_TABLE])}
	r.sets = append(r.sets, setName{r.byName[at], len(t.Sets), at, string(m.attrs[unix.NFTA_SET_NAME])})
	t.Sets = append(t.Sets, s)
	t.Whole = t.Whole && !replaced(s.Name)
}

// setName is a set as messages name it, and where it stands in what is read.
type setName struct {
	inList, inSets int
	table          tableName
	raw            string
}

// replaced is whether a name is not as the kernel has it, so that two may have
// become one.
func replaced(name string) bool { return strings.Contains(name, "\uFFFD") }

// readElements reads the elements of the sets. Those of a set that packets fill
// come and go by themselves: they are not read, nor what is too much.
func (r *reader) readElements() error {
	for _, name := range r.sets {
		t := &r.list[name.inList]
		s := &t.Sets[name.inSets]
		if s.Flags&host.NFTSetEval != 0 || r.elements > maxElements {
			continue
		}
		if err := r.readSet(name, s); err != nil {
			return fmt.Errorf("set %s of table %s %s: %w", s.Name, t.Family, t.Name, err)
		}
	}
	return nil
}

func (r *reader) readSet(name setName, s *host.NFTSet) error {
	request := netlink.AppendAttribute(nil, attrListTable, []byte(name.table.raw))
	request = netlink.AppendAttribute(request, attrListSet, []byte(name.raw))
	list := elementList{intervals: s.Flags&host.NFTSetInterval != 0 && s.Flags&host.NFTSetConcat == 0, whole: true}
	err := r.dump(unix.NFT_MSG_GETSETELEM, name.table.family, request, func(m *message) {
		each(m.attrs[attrListElements], list.add)
	})
	if err != nil {
		return err
	}
	if r.elements += list.size; !list.whole {
		return nil
	}
	s.Elements, s.Unread = list.elements(), false
	return nil
}

// elementList gathers the elements of a set. Intervals come as two elements,
// where each begins and where it has ended, in any order; or as one, in sets of
// concatenations.
type elementList struct {
	intervals bool
	whole     bool
	size      int
	single    []host.NFTElement
	ends      [][]byte
}

func (l *elementList) add(elem []byte) {
	if l.size > maxElements {
		*l = elementList{size: l.size} // and not whole
	}
	if !l.whole {
		return
	}
	var attrs [12][]byte
	netlink.ByType(elem, attrs[:])
	e := host.NFTElement{Key: bytes.Clone(attribute(attrs[attrElemKey], unix.NFTA_DATA_VALUE))}
	l.size += 2*len(e.Key) + 1
	flags := bigEndian(attrs[attrElemFlags])
	odd := len(e.Key) == 0 && flags&elemCatchAll == 0
	if flags&elemIntervalEnd != 0 && !odd {
		l.ends = append(l.ends, e.Key)
		return
	}
	if e.Any = flags&elemCatchAll != 0; e.Any {
		e.Key = nil
	}
	if to := attrs[attrElemKeyEnd]; to != nil {
		e.Last = bytes.Clone(attribute(to, unix.NFTA_DATA_VALUE))
		odd = odd || len(e.Last) != len(e.Key) || bytes.Compare(e.Last, e.Key) < 0
		if bytes.Equal(e.Last, e.Key) {
			e.Last = nil
		}
		l.size += 2 * len(e.Last)
	}
	if data := attrs[attrElemData]; data != nil {
		e.Data = bytes.Clone(attribute(data, unix.NFTA_DATA_VALUE))
		if v := attribute(data, unix.NFTA_DATA_VERDICT); v != nil {
			e.Data = nil
			e.Verdict, e.Chain = verdictOf(v)
		}
		l.size += 2*len(e.Data) + len(e.Verdict) + len(e.Chain)
	}
	if ref := attrs[attrElemRef]; ref != nil {
		e.Object = cstring(ref)
		l.size += len(e.Object)
	}
	if odd { // nothing that a set has: not whole
		*l = elementList{size: l.size}
		return
	}
	e.Expires = attrs[attrElemExpires] != nil || bigEndian(attrs[attrElemTimeout]) != 0
	l.single = append(l.single, e)
}

// elements are all elements, in the order of their keys: equal sets are equal
// texts, in whatever order the kernel has their elements.
func (l *elementList) elements() host.Elements {
	slices.SortStableFunc(l.single, func(a, b host.NFTElement) int { return bytes.Compare(a.Key, b.Key) })
	if l.intervals {
		slices.SortFunc(l.ends, bytes.Compare)
		l.close()
	}
	return host.MakeElements(slices.Values(l.single))
}

// close gives each interval its last value: the one before the next end, or
// before the next beginning, where nft leaves out the end between the two.
func (l *elementList) close() {
	end := 0
	for i := range l.single {
		e := &l.single[i]
		if e.Any || e.Last != nil {
			continue
		}
		for end < len(l.ends) && bytes.Compare(l.ends[end], e.Key) <= 0 {
			end++
		}
		last := bytes.Repeat([]byte{0xff}, len(e.Key)) // without an end: to the highest
		if end < len(l.ends) {
			last = before(l.ends[end])
		}
		if i+1 < len(l.single) && bytes.Compare(l.single[i+1].Key, last) <= 0 && !bytes.Equal(l.single[i+1].Key, e.Key) {
			last = before(l.single[i+1].Key)
		}
		if !bytes.Equal(last, e.Key) {
			e.Last = last
		}
	}
}

// before is the number before one that is not 0, both big-endian.
func before(key []byte) []byte {
	b := bytes.Clone(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}
