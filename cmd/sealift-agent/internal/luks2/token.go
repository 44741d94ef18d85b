package luks2

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// SetToken replaces the token of that number in the header of the volume v, which
// was opened from the same device. Nothing else of the volume changes. A copy of the
// header that is torn or older is made like the other. Then the secondary copy is
// written first, each copy durable before the next: cut off anywhere, and again, the
// header is the old one or the new one.
func (v *Volume) SetToken(d Device, id int, token json.RawMessage) error {
	if err := v.setToken(d, strconv.Itoa(id), token); err != nil {
		return fmt.Errorf("set token %d of LUKS2 volume %s: %w", id, v.UUID, err)
	}
	return nil
}

func (v *Volume) setToken(d Device, id string, token json.RawMessage) error {
	h, err := readHeader(d)
	if err != nil {
		return err
	}
	if h.uuid != v.UUID {
		return fmt.Errorf("the header is of volume %s", h.uuid)
	}
	m, err := decodeMetadata(h.json)
	if err != nil {
		return err
	}
	if err := m.Digests["0"].verify(v.Key); err != nil {
		return fmt.Errorf("the volume key is not that of the header: %w", err)
	}
	old, ok := m.Tokens[id]
	if !ok {
		return errors.New("there is none")
	}
	if err := h.replace(d, rand.Reader); err != nil || bytes.Equal(old, token) {
		return err
	}
	m.Tokens[id] = token
	if err := m.check(); err != nil {
		return err
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode metadata: %w", err)
	}
	h = &header{sequence: h.sequence + 1, label: h.label, uuid: h.uuid, json: doc}
	return h.replace(d, rand.Reader)
}
