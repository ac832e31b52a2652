/* A part of a JPEG, decoded by libjpeg-turbo: what the training crop does not need is skipped.
 *
 * Huffman codes have to be read in order, so everything above the region is parsed but not transformed; the blocks beside it are not
 * transformed either, and what lies below it is never looked at.  With the accurate integer IDCT and smooth chroma upsampling the
 * pixels equal, bit for bit, those of Pillow's full decode (tests/data/test_crop.py).
 *
 * The build leaves this module out where libjpeg-turbo's headers are missing; crop.py then uses Pillow.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <jpeglib.h>
#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "needs libjpeg-turbo: jpeg_crop_scanline and jpeg_skip_scanlines"
#endif

#define SPARE_COLUMNS 2 /* beside the region, on each side */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf leave;
    char message[JMSG_LENGTH_MAX];
} Errors;

static void fail(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    if (errors->base.msg_code != JERR_OUT_OF_MEMORY) errors->base.format_message(info, errors->message);
    longjmp(errors->leave, 1);
}

static void stay_silent(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

/* Handlers first: creating and everything after it may call them. */
static void prepare(j_decompress_ptr info, Errors *errors) {
    memset(info, 0, sizeof *info);
    info->err = jpeg_std_error(&errors->base);
    errors->base.error_exit = fail;
    errors->base.emit_message = stay_silent;
    errors->message[0] = '\0';
}

/* No message means no memory. */
static PyObject *refused(const Errors *errors) {
    if (!errors->message[0]) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, errors->message);
    return NULL;
}

/* A progressive image whose scans end early is smoothed by guesses, which differ between a part and the whole, and between versions. */
static int is_unfinished(j_decompress_ptr info) {
    if (!info->progressive_mode || !info->coef_bits) return 0;
    for (int component = 0; component < info->num_components; component++)
        for (int coefficient = 0; coefficient < 10; coefficient++)
            if (info->coef_bits[component][coefficient]) return 1;
    return 0;
}

/* Whether a part is known to have the bits of the whole.  jpeg_crop_scanline takes it that every component is reduced alike; of an image with
 * chroma at a quarter across and a half down (4:1:0) at 1/2 and 1/4 that is wrong, and parts of it come out up to 131 levels off. */
static int has_exact_parts(j_decompress_ptr info) {
    int across = info->max_h_samp_factor, down = info->max_v_samp_factor;
    return (across <= 2 && down <= 2) || (across == 4 && down == 1) || (across == 1 && down == 4);
}

/* header(data) -> (width, height, components, has_app1) */
static PyObject *header(PyObject *self, PyObject *argument) {
    Py_buffer data;
    struct jpeg_decompress_struct info;
    Errors errors;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE) < 0) return NULL;
    prepare(&info, &errors);
    if (setjmp(errors.leave)) {
        jpeg_destroy_decompress(&info);
        PyBuffer_Release(&data);
        return refused(&errors);
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data.buf, (unsigned long)data.len);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 1); /* where EXIF and XMP stand; one byte is enough to know */
    jpeg_read_header(&info, TRUE);
    unsigned width = info.image_width, height = info.image_height;
    int components = info.num_components, has_app1 = info.marker_list != NULL;
    jpeg_destroy_decompress(&info);
    PyBuffer_Release(&data);
    return Py_BuildValue("IIiN", width, height, components, PyBool_FromLong(has_app1));
}

/* 0, or -1 with libjpeg's message in `errors` (an empty one: no memory); `line` is a row's worth of memory, freed by the caller. */
static int read_region(j_decompress_ptr info, Errors *errors, const Py_buffer *data, unsigned scale, const unsigned box[4],
                       unsigned char *out, JSAMPLE **line) {
    const unsigned left = box[0], top = box[1], width = box[2], height = box[3];
    if (setjmp(errors->leave)) return -1;
    jpeg_create_decompress(info);
    jpeg_mem_src(info, data->buf, (unsigned long)data->len);
    jpeg_read_header(info, TRUE);
    if (!has_exact_parts(info)) {
        snprintf(errors->message, sizeof errors->message, "its sampling factors are left to Pillow");
        return -1;
    }
    info->out_color_space = JCS_RGB;
    info->scale_num = 1;
    info->scale_denom = scale;
    info->dct_method = JDCT_ISLOW;
    info->do_fancy_upsampling = TRUE;
    jpeg_start_decompress(info);
    if (is_unfinished(info)) {
        snprintf(errors->message, sizeof errors->message, "scans are missing");
        return -1;
    }
    if (left + width > info->output_width || top + height > info->output_height || !width || !height) {
        snprintf(errors->message, sizeof errors->message, "the region exceeds the image of %ux%u", info->output_width, info->output_height);
        return -1;
    }
    /* Smooth upsampling looks one chroma sample aside, which a column more on each side would do for.  But it is left out, above and below
     * too, where fewer than two chroma samples lie in a row, which at an image's rim needs a second column. */
    JDIMENSION first = left > SPARE_COLUMNS ? left - SPARE_COLUMNS : 0;
    JDIMENSION columns = (info->output_width - (left + width) > SPARE_COLUMNS ? left + width + SPARE_COLUMNS : info->output_width) - first;
    if (first || columns < info->output_width) jpeg_crop_scanline(info, &first, &columns);
    *line = malloc((size_t)info->output_width * 3);
    if (!*line) {
        errors->message[0] = '\0';
        return -1;
    }
    if (top) jpeg_skip_scanlines(info, top);
    for (unsigned row = 0; row < height; row++) {
        JSAMPROW rows[1] = {*line};
        jpeg_read_scanlines(info, rows, 1);
        memcpy(out + (size_t)row * width * 3, *line + (size_t)(left - first) * 3, (size_t)width * 3);
    }
    return 0;
}

/* region(data, scale, left, top, width, height, out): RGB rows into the writable buffer `out`; all in pixels of the scaled image */
static PyObject *region(PyObject *self, PyObject *arguments) {
    Py_buffer data, out;
    unsigned scale, box[4];
    struct jpeg_decompress_struct info;
    Errors errors;
    JSAMPLE *line = NULL;
    int status;
    if (!PyArg_ParseTuple(arguments, "y*IIIIIw*", &data, &scale, &box[0], &box[1], &box[2], &box[3], &out)) return NULL;
    if (box[0] > JPEG_MAX_DIMENSION || box[1] > JPEG_MAX_DIMENSION || box[2] > JPEG_MAX_DIMENSION || box[3] > JPEG_MAX_DIMENSION ||
        (size_t)out.len != (size_t)box[2] * box[3] * 3) {
        PyBuffer_Release(&data);
        PyBuffer_Release(&out);
        PyErr_SetString(PyExc_ValueError, "`out` must hold width x height x 3 bytes");
        return NULL;
    }
    prepare(&info, &errors);
    Py_BEGIN_ALLOW_THREADS;
    status = read_region(&info, &errors, &data, scale, box, out.buf, &line);
    jpeg_destroy_decompress(&info);
    free(line);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (status) return refused(&errors);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"header", header, METH_O, "header(data) -> (width, height, components, has_app1); raises ValueError"},
    {"region", region, METH_VARARGS, "region(data, scale, left, top, width, height, out); raises ValueError"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg", "Parts of JPEGs (libjpeg-turbo).", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&module); }
