/* Events of a binlog into packets of the client-server protocol: replicator/packets.py says what it does, and does the
 * same where this was not compiled. One call takes a whole piece of a file; nothing here outlives it. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum {
    HEADER_BYTES = 19,
    EVENT_BYTES_MIN = 23,
    SIZE_AT = 9,
    PACKET_HEADER_BYTES = 4,
    PART_BYTES_MAX = 0xFFFFFF,
};

static Py_ssize_t size_at(const unsigned char *event)
{
    const unsigned char *size = event + SIZE_AT;
    return (Py_ssize_t)(size[0] | (uint32_t)size[1] << 8 | (uint32_t)size[2] << 16 | (uint32_t)size[3] << 24);
}

/* Whether a whole event that fits into one packet begins here; `*size` is its length then. */
static int fits(const unsigned char *event, Py_ssize_t left, Py_ssize_t lead_bytes, Py_ssize_t *size)
{
    if (left < HEADER_BYTES)
        return 0;
    *size = size_at(event);
    return *size >= EVENT_BYTES_MIN && *size <= left && *size + lead_bytes < PART_BYTES_MAX;
}

static unsigned char *put(unsigned char *to, const unsigned char *event, Py_ssize_t size, const Py_buffer *lead,
                          unsigned int sequence)
{
    const Py_ssize_t length = size + lead->len;
    to[0] = (unsigned char)length;
    to[1] = (unsigned char)(length >> 8);
    to[2] = (unsigned char)(length >> 16);
    to[3] = (unsigned char)sequence;
    memcpy(to + PACKET_HEADER_BYTES, lead->buf, (size_t)lead->len);
    memcpy(to + PACKET_HEADER_BYTES + lead->len, event, (size_t)size);
    return to + PACKET_HEADER_BYTES + length;
}

static PyObject *framed(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data, lead;
    unsigned int sequence;
    if (!PyArg_ParseTuple(arguments, "y*y*I:framed", &data, &lead, &sequence))
        return NULL;

    const unsigned char *events = data.buf;
    Py_ssize_t done = 0, count = 0, size = 0;
    for (; fits(events + done, data.len - done, lead.len, &size); count++)
        done += size;

    PyObject *packets = PyBytes_FromStringAndSize(NULL, done + count * (PACKET_HEADER_BYTES + lead.len));
    if (packets != NULL) {
        unsigned char *to = (unsigned char *)PyBytes_AsString(packets);
        for (Py_ssize_t at = 0; at < done; at += size, sequence++) {
            size = size_at(events + at);
            to = put(to, events + at, size, &lead, sequence);
        }
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&lead);
    return packets == NULL ? NULL : Py_BuildValue("(Nnn)", packets, done, count);
}

static PyMethodDef methods[] = {
    {"framed", framed, METH_VARARGS, "See replicator/packets.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "replicator._packets",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__packets(void)
{
    return PyModule_Create(&definition);
}
