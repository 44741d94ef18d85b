// Package strict decodes JSON that comes from outside and is not authenticated.
// It takes one reading of a document where others allow several: a name twice
// in an object, a name in another case, text that is no UTF-8, a field that
// nobody knows and anything after the document are errors (RFC 8259 leaves all
// of them open; RFC 7493 forbids most).
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
)

// maxValues bounds the values of a document: "{}," is three bytes to send and
// eighty to keep. The largest that is sent, evidence with eight banks, has
// under 300.
const maxValues = 4096

var errManyValues = fmt.Errorf("more than %d values", maxValues)

// Decode reads one document from r, to its end, into v, which is a pointer to
// its zero value. An error of r can be told by errors.As. Nothing but v and
// what is being read at the time is kept in memory.
func Decode(r io.Reader, v any) error {
	c := &counter{r: r}
	err := json.UnmarshalRead(c, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	if c.err != nil && !errors.Is(err, c.err) {
		err = c.err
	}
	return fmt.Errorf("decode JSON: %w", err)
}

// counter passes on what it reads until there are too many values in it.
type counter struct {
	r      io.Reader
	values int
	err    error // what ended the reading, if that was not the end
}

func (c *counter) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	for _, mark := range []string{",", "[", "{"} {
		// Each value but the first of an object or array follows a comma. Those
		// inside strings count too: no string that is sent has many.
		c.values += bytes.Count(p[:n], []byte(mark))
	}
	if c.values > maxValues {
		n, err = 0, errManyValues
	}
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}
