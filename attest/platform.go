package attest

import "fmt"

// platformEvents are the types that the PFP has for PCR 1, the configuration of the
// platform ("PCR[1] - Host Platform Configuration").
func platformEvents() []EventType {
	return []EventType{
		eventPlatformAction, EventTag, eventMicrocode, eventConfigFlags, eventTableOfDevices, eventNonHostConfig, EventVariableConfig,
		EventVariableBoot, EventVariableBoot2, EventAction, EventHandoff, EventHandoff2,
	}
}

// Types of events in PCR 1 that no other rule names.
const (
	eventPlatformAction EventType = 0x00000005
	eventMicrocode      EventType = 0x00000009
	eventConfigFlags    EventType = 0x0000000a
	eventTableOfDevices EventType = 0x0000000b
	eventNonHostConfig  EventType = 0x00000010
)

// appraisePlatform looks at PCR 1. What is in it depends on the machine (boot
// order, settings, microcode) and is compared with nothing; but an event of a type
// that does not belong there is not something that the machine's owner knows of,
// unless the policy names it for the model, and neither is the digest of an image.
func (b *measuredBoot) appraisePlatform() {
	if !b.sound[1] {
		return
	}
	known := map[EventType]bool{}
	for _, t := range platformEvents() {
		known[t] = true
	}
	for _, e := range b.log.ForPCR(1) {
		switch m := b.imageOf(e.digest()); {
		case e.isSeparator():
		case m != nil:
			b.v.findPCR(1, Finding{
				Code: CodeLogStructure, Message: fmt.Sprintf("PCR 1, event %d: the digest of the UKI of image %s, which belongs into PCR 4", e.Number, imageName(m)),
				Got: e.digest().String(), Hint: hintInspectLog,
			})
		case !known[e.UntrustedType]:
			if name, ok := b.v.component(1, e); ok {
				b.v.fact("component", "PCR 1: "+name, TrustQuoted)
				continue
			}
			b.unknown(e, "no configuration of the platform", hintInspectLog)
		}
	}
}
