package attest

import (
	"fmt"
	"slices"
	"strings"
)

type gptPartition struct {
	number      int
	name, guid  string
	first, last uint64
}

// gptPartitions reads the entries in the data of an EV_EFI_GPT_EVENT: the
// header, their number, and 128 bytes each (PFP, "UEFI_GPT_DATA").
func gptPartitions(b []byte) (disk string, out []gptPartition, ok bool) {
	disk, err := gptDiskGUID(b)
	if err != nil {
		return "", nil, false
	}
	r := &logReader{b: b[92:]}
	n := r.u64()
	if r.bad || n > maxGPTEntries || uint64(len(r.b)) < n*128 {
		return disk, nil, false
	}
	for i := range int(n) {
		r.take(16)
		p := gptPartition{number: i + 1, guid: formatGUID(r.take(16)), first: r.u64(), last: r.u64()}
		r.u64()
		p.name = cleanText(strings.TrimRight(decodeUTF16(r.take(72)), "\x00"))
		out = append(out, p)
	}
	return disk, out, true
}

// diffGPT says how a partition table differs.
func diffGPT(was, is []byte) string {
	diskA, a, ok1 := gptPartitions(was)
	diskB, b, ok2 := gptPartitions(is)
	var parts []string
	if diskA != diskB && diskA != "" && diskB != "" {
		parts = append(parts, fmt.Sprintf("disk was %s, is %s", diskA, diskB))
	}
	if ok1 && ok2 {
		name := func(p gptPartition) string { return fmt.Sprintf("partition %d %q", p.number, p.name) }
		find := func(list []gptPartition, p gptPartition) *gptPartition {
			if i := slices.IndexFunc(list, func(o gptPartition) bool { return o.number == p.number }); i >= 0 {
				return &list[i]
			}
			return nil
		}
		for _, p := range b {
			switch o := find(a, p); {
			case o == nil:
				parts = append(parts, name(p)+" is new")
			case *o != p && (o.first != p.first || o.last != p.last):
				parts = append(parts, name(p)+" was moved or resized")
			case *o != p:
				parts = append(parts, fmt.Sprintf("%s was %q %s, is %q %s", name(p), o.name, o.guid, p.name, p.guid))
			}
		}
		for _, p := range a {
			if find(b, p) == nil {
				parts = append(parts, name(p)+" is gone")
			}
		}
	}
	if n := len(parts) - maxListed; n > 0 {
		parts = append(parts[:maxListed], fmt.Sprintf("and %d more differences", n))
	}
	return strings.Join(parts, ", ")
}

// maxBoundedText bounds a text of a bounded Explanation, in bytes.
const maxBoundedText = 1024
