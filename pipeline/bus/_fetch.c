/* What librdkafka has fetched, as columns: one call for thousands of records, no Message object for each.
 *
 * librdkafka is the one that confluent_kafka has loaded: its functions come as addresses (`bind`), so that nothing of
 * it is needed to compile this. `rd_kafka_message_t` is part of its public interface and has not changed since 0.9.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct {
    int err;
    void *topic;
    int32_t partition;
    void *payload; /* with err: what to say of it */
    size_t size;
    void *key;
    size_t key_size;
    int64_t offset;
    void *own;
} message_t;

/* In the order of `bind`'s arguments. */
static struct {
    Py_ssize_t (*consume_batch_queue)(void *queue, int timeout_ms, message_t **messages, size_t most);
    void (*message_destroy)(message_t *);
    int64_t (*message_timestamp)(const message_t *, int *kind);
    int (*message_headers)(const message_t *, void **headers);
    int (*header_get_all)(const void *headers, size_t index, const char **name, const void **value, size_t *size);
    const char *(*topic_name)(const void *topic);
} kafka;

/* Records of one topic-partition, in the order in which they came. */
typedef struct {
    void *topic;
    int32_t partition;
    Py_ssize_t count;
    PyObject *columns; /* the tuple that is returned, or NULL */
    PyObject *keys, *values, *headers; /* within columns */
    int64_t *offsets, *times;
    int64_t bytes;
    Py_ssize_t done;
} part_t;

#define HEADER_BYTES 146 /* as bus/sizes.py counts */

static PyObject *bind(PyObject *self, PyObject *args)
{
    unsigned long long a[6];
    if (!PyArg_ParseTuple(args, "KKKKKK", &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]))
        return NULL;
    memcpy(&kafka, a, sizeof kafka);
    Py_RETURN_NONE;
}

static PyObject *bytes_or_none(const void *data, size_t size)
{
    if (data == NULL)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

/* A list of (name, value); None where there are none, or a name is no UTF-8. NULL with an exception set. */
static PyObject *headers_of(const message_t *message, int64_t *bytes)
{
    void *headers;
    const char *name;
    const void *value;
    size_t size, index;
    int64_t total = 0;
    if (kafka.message_headers(message, &headers) != 0)
        Py_RETURN_NONE;
    PyObject *found = PyList_New(0);
    for (index = 0; found && kafka.header_get_all(headers, index, &name, &value, &size) == 0; index++) {
        PyObject *pair = NULL, *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), NULL);
        if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
            PyErr_Clear();
            Py_DECREF(found);
            Py_RETURN_NONE;
        }
        PyObject *content = text ? bytes_or_none(value, size) : NULL;
        if (content) {
            pair = PyTuple_Pack(2, text, content);
            total += HEADER_BYTES + (int64_t)PyUnicode_GET_LENGTH(text) + (int64_t)(value ? size : 0);
        }
        Py_XDECREF(text);
        Py_XDECREF(content);
        if (pair == NULL || PyList_Append(found, pair) < 0)
            Py_CLEAR(found);
        Py_XDECREF(pair);
    }
    *bytes += total;
    return found;
}

/* Which part each message belongs to, -1 for an error; the number of parts, or -1 without memory. */
static Py_ssize_t sort_out(message_t **messages, Py_ssize_t count, int32_t *part_of, part_t **parts)
{
    Py_ssize_t used = 0, room = 0, last = 0;
    *parts = NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        const message_t *m = messages[i];
        if (m->err) {
            part_of[i] = -1;
            continue;
        }
        part_t *p = *parts;
        if (!(last < used && p[last].topic == m->topic && p[last].partition == m->partition))
            for (last = 0; last < used; last++)
                if (p[last].topic == m->topic && p[last].partition == m->partition)
                    break;
        if (last == used) {
            if (used == room) {
                room = room ? 2 * room : 16;
                p = realloc(*parts, (size_t)room * sizeof **parts);
                if (p == NULL)
                    return -1;
                *parts = p;
            }
            memset(&p[used], 0, sizeof *p);
            p[used].topic = m->topic;
            p[used].partition = m->partition;
            used++;
        }
        (*parts)[last].count++;
        part_of[i] = (int32_t)last;
    }
    return used;
}

static int begin(part_t *part)
{
    PyObject *offsets = PyBytes_FromStringAndSize(NULL, part->count * 8);
    PyObject *times = PyBytes_FromStringAndSize(NULL, part->count * 8);
    part->keys = PyList_New(part->count);
    part->values = PyList_New(part->count);
    PyObject *topic = PyUnicode_FromString(kafka.topic_name(part->topic));
    PyObject *partition = PyLong_FromLong(part->partition);
    if (offsets && times && part->keys && part->values && topic && partition)
        part->columns = PyTuple_New(8);
    if (part->columns == NULL) {
        Py_XDECREF(offsets);
        Py_XDECREF(times);
        Py_CLEAR(part->keys);
        Py_CLEAR(part->values);
        Py_XDECREF(topic);
        Py_XDECREF(partition);
        return -1;
    }
    part->offsets = (int64_t *)PyBytes_AS_STRING(offsets);
    part->times = (int64_t *)PyBytes_AS_STRING(times);
    PyTuple_SET_ITEM(part->columns, 0, topic);
    PyTuple_SET_ITEM(part->columns, 1, partition);
    PyTuple_SET_ITEM(part->columns, 2, offsets);
    PyTuple_SET_ITEM(part->columns, 3, part->keys);
    PyTuple_SET_ITEM(part->columns, 4, part->values);
    PyTuple_SET_ITEM(part->columns, 5, times);
    return 0;
}

static int take(part_t *part, const message_t *m)
{
    int kind;
    Py_ssize_t at = part->done++;
    PyObject *key = bytes_or_none(m->key, m->key_size), *value = bytes_or_none(m->payload, m->size);
    PyObject *headers = headers_of(m, &part->bytes);
    if (!key || !value || !headers) {
        Py_XDECREF(key);
        Py_XDECREF(value);
        Py_XDECREF(headers);
        return -1;
    }
    PyList_SET_ITEM(part->keys, at, key);
    PyList_SET_ITEM(part->values, at, value);
    part->offsets[at] = m->offset;
    part->times[at] = kafka.message_timestamp(m, &kind);
    part->bytes += (int64_t)((m->key ? m->key_size : 0) + (m->payload ? m->size : 0));
    if (headers != Py_None && part->headers == NULL) {
        part->headers = PyList_New(part->count);
        for (Py_ssize_t i = 0; part->headers && i < part->count; i++)
            PyList_SET_ITEM(part->headers, i, Py_NewRef(Py_None));
    }
    if (part->headers)
        return PyList_SetItem(part->headers, at, headers); /* takes the reference, whatever happens */
    Py_DECREF(headers);
    return headers == Py_None ? 0 : -1;
}

static PyObject *end(part_t *part)
{
    PyObject *bytes = PyLong_FromLongLong(part->bytes);
    PyObject *columns = part->columns;
    if (bytes == NULL)
        return NULL;
    PyTuple_SET_ITEM(columns, 6, part->headers ? part->headers : Py_NewRef(Py_None));
    PyTuple_SET_ITEM(columns, 7, bytes);
    part->columns = part->headers = NULL;
    return columns;
}

static PyObject *error_of(const message_t *m)
{
    const char *topic = m->topic ? kafka.topic_name(m->topic) : NULL;
    return Py_BuildValue("(ziLiz#)", topic, (int)m->partition, (long long)m->offset, m->err, (const char *)m->payload,
                         (Py_ssize_t)m->size);
}

/* ([(topic, partition, offsets, keys, values, times, headers, bytes)], [(topic, partition, offset, code, text)]) */
static PyObject *convert(message_t **messages, Py_ssize_t count, int32_t *part_of)
{
    part_t *parts = NULL;
    PyObject *batches = PyList_New(0), *errors = PyList_New(0), *item = NULL, *answer = NULL;
    Py_ssize_t i, used = sort_out(messages, count, part_of, &parts);
    if (used < 0) {
        used = 0;
        PyErr_NoMemory();
        goto done;
    }
    if (!batches || !errors)
        goto done;
    for (i = 0; i < used; i++)
        if (begin(&parts[i]) < 0)
            goto done;
    for (i = 0; i < count; i++) {
        if (part_of[i] >= 0) {
            if (take(&parts[part_of[i]], messages[i]) < 0)
                goto done;
            continue;
        }
        item = error_of(messages[i]);
        if (item == NULL || PyList_Append(errors, item) < 0)
            goto done;
        Py_CLEAR(item);
    }
    for (i = 0; i < used; i++) {
        item = end(&parts[i]);
        if (item == NULL || PyList_Append(batches, item) < 0)
            goto done;
        Py_CLEAR(item);
    }
    answer = PyTuple_Pack(2, batches, errors);
done:
    for (i = 0; i < used; i++) {
        Py_XDECREF(parts[i].columns);
        Py_XDECREF(parts[i].headers);
    }
    free(parts);
    Py_XDECREF(item);
    Py_XDECREF(batches);
    Py_XDECREF(errors);
    return answer;
}

static PyObject *fetch(PyObject *self, PyObject *args)
{
    unsigned long long queue;
    Py_ssize_t most, count, i;
    int timeout_ms;
    if (!PyArg_ParseTuple(args, "Kni", &queue, &most, &timeout_ms))
        return NULL;
    if (kafka.consume_batch_queue == NULL || most < 1) {
        PyErr_SetString(PyExc_ValueError, "nothing is bound, or nothing asked for");
        return NULL;
    }
    message_t **messages = malloc((size_t)most * sizeof *messages);
    int32_t *part_of = malloc((size_t)most * sizeof *part_of);
    PyObject *answer = NULL;
    if (messages == NULL || part_of == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    /* It waits its whole timeout for as many as it is asked for. */
    count = kafka.consume_batch_queue((void *)(uintptr_t)queue, timeout_ms, messages, 1);
    if (count == 1 && most > 1) {
        Py_ssize_t more = kafka.consume_batch_queue((void *)(uintptr_t)queue, 0, messages + 1, (size_t)most - 1);
        count += more > 0 ? more : 0;
    }
    Py_END_ALLOW_THREADS
    if (count < 0)
        count = 0;
    answer = convert(messages, count, part_of);
    Py_BEGIN_ALLOW_THREADS
    for (i = 0; i < count; i++)
        kafka.message_destroy(messages[i]);
    Py_END_ALLOW_THREADS
done:
    free(messages);
    free(part_of);
    return answer;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, "Set librdkafka's functions, in the order of `kafka` in _fetch.c, by their addresses."},
    {"fetch", fetch, METH_VARARGS, "fetch(queue, most, timeout_ms) -> (batches, errors); waits for the first only."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fetch", "Records that librdkafka has fetched, as columns.",
                                    -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fetch(void) { return PyModule_Create(&module); }
