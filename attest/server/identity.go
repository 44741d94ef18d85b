package server

import (
	"slices"

	"github.com/sealift/sealift/attest/audit"
)

// identify adds to the last state change of each machine of c its identity, and to
// that of c.Machine the documents about who is who that are written with it. With it
// a restore knows from the log whose a serial number is.
func identify(c *Change) {
	if c.Gives != nil {
		identifyAs(c, c.Gives, nil)
	}
	if c.Machine == nil {
		return
	}
	documents := c.Documents
	if c.Release != nil { // whose entry says whose the TPM is
		documents = slices.DeleteFunc(slices.Clone(documents), func(d *Document) bool { return d.Kind == tpmKind })
	}
	identifyAs(c, c.Machine, documents)
}

func identifyAs(c *Change, m *Machine, documents []*Document) {
	for i := len(c.Events) - 1; i >= 0; i-- {
		d, ok := c.Events[i].Data.(audit.StateChange)
		if !ok || c.Events[i].Machine != m.ID {
			continue
		}
		d.Identity = &audit.Identity{
			NodeName: m.NodeName, FormerName: m.FormerName, Serial: m.Serial, Listed: m.Listed, ReplacedBy: m.ReplacedBy, Digests: m.Digests,
			Bindings: bindings(documents),
		}
		c.Events[i].Data = d
		return
	}
}

// bindings returns those of documents that say who is who.
func bindings(documents []*Document) []audit.Binding {
	var out []audit.Binding
	for _, d := range documents {
		if d.Kind == serialKind || d.Kind == expectedKind || d.Kind == tpmKind {
			out = append(out, audit.Binding{Kind: d.Kind, Name: d.Name, Body: d.Body})
		}
	}
	return out
}
