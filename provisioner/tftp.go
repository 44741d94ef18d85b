package provisioner

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Opcodes of TFTP (RFC 1350 5, RFC 2347).
const (
	tftpRRQ   = 1
	tftpWRQ   = 2
	tftpDATA  = 3
	tftpACK   = 4
	tftpERROR = 5
	tftpOACK  = 6
)

// Error codes of TFTP (RFC 1350, appendix; RFC 2347).
const (
	tftpNotDefined   = 0
	tftpNotFound     = 1
	tftpAccess       = 2
	tftpIllegal      = 4
	tftpBadOption    = 8
	tftpMaxRequest   = 1024 // bytes of a request; RFC 2347 allows 512, some ROMs pad
	tftpMaxOptions   = 16
	tftpDefaultBlock = 512
	tftpMinBlock     = 8 // RFC 2348
	tftpHeader       = 4
	// tftpMaxWindow bounds what is sent without an ACK. edk2 asks for 4;
	// beyond 64 nothing is gained, and small receive buffers overflow.
	tftpMaxWindow = 64
	// tftpTimeout is how long an ACK may take if the client does not say.
	tftpTimeout = time.Second
)

// tftpRequest is an RRQ. Unset options are zero.
type tftpRequest struct {
	file     string
	options  []tftpOption // those that were understood, in the order of the request
	block    int          // blksize (RFC 2348), bytes of data in a packet
	window   int          // windowsize (RFC 7440), packets
	timeout  time.Duration
	wantSize bool // tsize (RFC 2349)
}

type tftpOption struct{ name, value string }

// tftpError is what a client is told. It is not logged as a failure of ours.
type tftpError struct {
	code uint16
	text string
}

func (e *tftpError) Error() string { return fmt.Sprintf("tftp error %d: %s", e.code, e.text) }

// parseTFTPRequest decodes the first packet of a transfer. It returns a
// *tftpError if the client is to be told why not, and another error if the
// packet deserves no answer.
func parseTFTPRequest(b []byte) (tftpRequest, error) {
	if len(b) < 2 || len(b) > tftpMaxRequest {
		return tftpRequest{}, fmt.Errorf("tftp: a request of %d bytes", len(b))
	}
	switch op := binary.BigEndian.Uint16(b); op {
	case tftpRRQ:
	case tftpWRQ:
		return tftpRequest{}, &tftpError{tftpAccess, "nothing can be written here"}
	default:
		// An answer to a stray packet could start an endless exchange.
		return tftpRequest{}, fmt.Errorf("tftp: opcode %d does not begin a transfer", op)
	}
	fields := bytes.Split(b[2:], []byte{0})
	// A well-formed request ends in NUL, so its last field is empty. Padding
	// looks like options with empty names.
	if len(fields) < 3 {
		return tftpRequest{}, &tftpError{tftpIllegal, "the request is cut off"}
	}
	mode := strings.ToLower(string(fields[1]))
	if mode != "octet" {
		return tftpRequest{}, &tftpError{tftpIllegal, "only mode octet is served"}
	}
	req := tftpRequest{file: string(fields[0]), block: tftpDefaultBlock, window: 1, timeout: tftpTimeout}
	seen := make(map[string]bool)
	for f := fields[2 : len(fields)-1]; len(f) >= 2 && len(seen) < tftpMaxOptions; f = f[2:] {
		name, text := strings.ToLower(string(f[0])), string(f[1])
		value, err := strconv.ParseUint(text, 10, 32)
		if err != nil || seen[name] {
			continue // RFC 2347: an option that is not acknowledged was not accepted
		}
		switch name {
		case "blksize":
			if value < tftpMinBlock {
				continue
			}
			req.block = int(min(value, 65464))
			text = strconv.Itoa(req.block)
		case "windowsize":
			if value < 1 {
				continue
			}
			req.window = int(min(value, tftpMaxWindow))
			text = strconv.Itoa(req.window)
		case "timeout":
			if value < 1 || value > 255 {
				continue
			}
			req.timeout = time.Duration(value) * time.Second
		case "tsize":
			req.wantSize = true
		default:
			continue
		}
		seen[name] = true
		req.options = append(req.options, tftpOption{name, text})
	}
	return req, nil
}

// fit lowers the block size to what reaches the client in one IP packet.
func (r *tftpRequest) fit(mtu int) {
	most := mtu - ipv4Header - udpHeader - tftpHeader
	if most < tftpMinBlock || r.block <= most {
		return
	}
	for i := range r.options {
		if r.options[i].name == "blksize" {
			r.block = most
			r.options[i].value = strconv.Itoa(most)
		}
	}
}

// oack builds the answer to the options, or nil if there are none.
func (r *tftpRequest) oack(size int) []byte {
	if len(r.options) == 0 {
		return nil
	}
	b := []byte{0, tftpOACK}
	for _, o := range r.options {
		if o.name == "tsize" {
			o.value = strconv.Itoa(size)
		}
		b = append(append(b, o.name...), 0)
		b = append(append(b, o.value...), 0)
	}
	return b
}

// tftpName reduces the spellings of a path that firmware uses to a file name:
// backslashes, a leading slash, doubled slashes, and the directory of the URL.
func tftpName(name string) string {
	name = strings.ReplaceAll(name, `\`, "/")
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		if p != "" {
			parts = append(parts, p)
		}
	}
	name = strings.Join(parts, "/")
	return strings.TrimPrefix(name, bootDir)
}

func tftpErrorPacket(e *tftpError) []byte {
	b := []byte{0, tftpERROR, byte(e.code >> 8), byte(e.code)}
	return append(append(b, e.text...), 0)
}

// parseTFTPReply decodes what a client sends during a transfer: the number of
// an ACK, or its ERROR.
func parseTFTPReply(b []byte) (ack uint16, peer *tftpError, err error) {
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("tftp: a packet of %d bytes", len(b))
	}
	switch op := binary.BigEndian.Uint16(b); op {
	case tftpACK:
		return binary.BigEndian.Uint16(b[2:]), nil, nil
	case tftpERROR:
		text, _, _ := bytes.Cut(b[4:], []byte{0})
		return 0, &tftpError{binary.BigEndian.Uint16(b[2:]), string(text[:min(len(text), 128)])}, nil
	default:
		return 0, nil, fmt.Errorf("tftp: opcode %d in a read transfer", op)
	}
}
